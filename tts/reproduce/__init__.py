"""The experiments behind the lab notes, and how the bundled models were made. The package itself never imports them."""
