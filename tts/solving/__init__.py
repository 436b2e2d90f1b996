"""What happens while one problem is solved: tokens generated, counted, cut into steps and paid for."""
