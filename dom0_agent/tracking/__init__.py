"""What dom0 remembers of each volume, and how it moves on."""
