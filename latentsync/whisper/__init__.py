"""Audio features: openai-whisper's encoder, its hidden states and the per-frame windows cut from them."""
