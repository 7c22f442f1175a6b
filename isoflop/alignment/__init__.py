"""From a base model to an assistant: conversations, SFT, preferences, adapters, reward models."""
