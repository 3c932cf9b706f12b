"""What people would pick instead, side by side with ours in one run; README.md says what is compared and how."""
