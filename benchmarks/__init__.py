"""What a request costs, side by side with what it would cost without Demijohn, in one run."""
