"""Audio in, audio out: the conversation engine. It knows no web, no Gradio and no metrics library."""
