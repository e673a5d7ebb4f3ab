"""Who calls: API keys, tokens of an identity provider, client certificates; and what is told of those who fail."""
