"""The experiments of the documentation. They are not part of the wheel."""
