"""What commands do, without their words."""
