"""Speech and language engines behind four Protocols; one adapter a file. See `base` for the contract."""
