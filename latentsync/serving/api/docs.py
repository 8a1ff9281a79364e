"""The interactive documentation, and the root of the server."""

import importlib.util
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

ASSETS_PACKAGE = "fastapi_offline"  # carries the files of Swagger UI


def add_docs(app: FastAPI) -> None:
    """Add `/docs`, which works offline if the package fastapi-offline is installed, and `/`, which links to it."""
    assets = assets_folder()
    if assets is not None:
        app.mount("/docs/assets", StaticFiles(directory=assets), name="docs-assets")

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        root = request.scope.get("root_path", "")
        base = f"{root}/docs/assets"
        local: dict[str, Any] = {
            "swagger_js_url": f"{base}/swagger-ui-bundle.js",
            "swagger_css_url": f"{base}/swagger-ui.css",
            "swagger_favicon_url": f"{base}/favicon.png",
        }
        title = f"{app.title} REST API"
        return get_swagger_ui_html(openapi_url=f"{root}/openapi.json", title=title, **(local if assets else {}))

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> dict[str, str]:
        root = request.scope.get("root_path", "")
        paths = {"docs": "/docs", "openapi": "/openapi.json", "jobs": "/v1/jobs", "models": "/v1/models"}
        return {"name": f"{app.title} REST API", "version": app.version} | {
            name: f"{root}{path}" for name, path in paths.items()
        }


def assets_folder() -> Path | None:
    """The folder with Swagger UI's files; None if the package is not installed."""
    found = importlib.util.find_spec(ASSETS_PACKAGE)
    folder = Path(found.origin).with_name("static") if found is not None and found.origin else None
    return folder if folder is not None and (folder / "swagger-ui-bundle.js").is_file() else None
