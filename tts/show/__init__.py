"""What a person sees: live views, tables, the report."""
