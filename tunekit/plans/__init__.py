"""What trains, at which rate, until when."""
