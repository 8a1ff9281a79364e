"""The web UI of the job service: `build_page` creates it, `gradio_app.py` serves it."""
