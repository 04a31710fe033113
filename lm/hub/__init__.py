"""The model in the Hugging Face ecosystem: configuration, model and tokenizers."""
