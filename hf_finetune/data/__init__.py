"""From files and the Hub to tables, splits, encoded features and padded batches."""
