"""Audio features: hidden states of openai-whisper's encoder, and the window of them for each video frame."""
