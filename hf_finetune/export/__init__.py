"""The finished model: its folder, card, upload to the Hub, and predictions."""
