"""The web page on the job service: `build_page` makes it, `gradio_app.py` serves it."""
