"""Code that several launchers share."""
