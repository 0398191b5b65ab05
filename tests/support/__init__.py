"""What several tests share: small models, made data, a double of the Hub."""
