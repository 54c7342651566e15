"""The page to chat: files of the package, which ask no other host for anything."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
         ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def page_routes() -> list[Route]:
    """`/` and a path for each file; they are read once."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in FOLDER.iterdir() if path.suffix in KINDS}
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}

    async def file(request: Request) -> Response:
        found = files.get(request.path_params.get("name", "index.html"))
        return Response(found[0], media_type=found[1], headers=headers) if found else Response(status_code=404)

    return [Route("/", file), Route("/page/{name}", file)]
