"""What an administrator starts in dom0; no call gets here."""
