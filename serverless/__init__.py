"""The F5-TTS worker for RunPod serverless: text in, speech of a cloned voice out, with word times and subtitles."""
