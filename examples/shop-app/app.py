# shell
"""A small shop with a page of its own for each visitor.

::

    browser ── GET /products ──► recommend ──► products in Millrace's order (its own order while there is none)
            ── POST /seen ──► exposure       what came into view
            ── POST /click ─► click          what was opened

Run ``millrace up --schema examples/shop-app/schema.toml`` in one terminal and this file in another.
"""

from __future__ import annotations

import argparse
import asyncio
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
import uvicorn
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from catalogue import Product, make
from millrace_client import AsyncMillrace, MillraceClientError, NotOnPage, Page

FOLDER = Path(__file__).parent
COOKIE, PAGES_KEPT, PAGE_SIZE = "visitor", 10_000, 24
MOST_ALIKE = 6
"""Products of one category on a page: it stays a shop's, whatever somebody clicks."""
AGAIN_S = 2.0
"""Until the catalogue is sent again, while Millrace is not there yet."""
HEADERS = {"cache-control": "no-store"}
R = TypeVar("R", bound=Struct)


class Seen(Struct):
    """What came into view: positions of a page, in the order shown."""

    request_id: str
    positions: Annotated[list[int], Meta(min_length=1, max_length=PAGE_SIZE)]


class Clicked(Struct):
    """What was opened."""

    request_id: str
    item_id: str


class Shop:
    """The shop's state: its products, and the pages that its visitors look at.

    Args:
        millrace: a client, or a fake one.
    """

    def __init__(self, millrace: AsyncMillrace, products: Mapping[str, Product]) -> None:
        self.millrace, self.products = millrace, products
        self.pages: OrderedDict[tuple[str, str], Page] = OrderedDict()

    async def send_catalogue(self) -> None:
        """Sends all products, and tries until they are kept: the shop opens without waiting for it."""
        while True:
            try:
                await self.millrace.put_items(one.item for one in self.products.values())
            except MillraceClientError as error:
                print(f"the catalogue is not sent yet: {error}", flush=True)
                await asyncio.sleep(AGAIN_S)
            else:
                return

    async def page(self, visitor: str) -> Page | None:
        """A page for a visitor; None: there is none now, and the shop shows its own order."""
        try:
            page = await self.millrace.recommend(
                visitor, size=PAGE_SIZE, only={"in_stock": True}, caps={"category": MOST_ALIKE}
            )
        except MillraceClientError as error:
            print(f"shown in the shop's own order: {error}", flush=True)
            return None
        self.pages[visitor, page.request_id or ""] = page
        while len(self.pages) > PAGES_KEPT:
            self.pages.popitem(last=False)
        return page

    # -- routes ----------------------------------------------------------------------------------------------------

    async def home(self, request: Request) -> Response:
        """The page; a new visitor gets a name."""
        answer = FileResponse(FOLDER / "index.html", headers=HEADERS)
        if not request.cookies.get(COOKIE) or "new" in request.query_params:
            answer.set_cookie(COOKIE, uuid.uuid4().hex, httponly=True, samesite="lax", max_age=30 * 86_400)
        return answer

    async def list_products(self, request: Request) -> Response:
        """The products for this visitor, best first."""
        page = await self.page(_visitor(request))
        if page is None:
            on_sale = [one for one in self.products.values() if one.in_stock]
            made, by, shown = "", "the shop's own order", list(enumerate(on_sale[:PAGE_SIZE]))
        else:
            made = page.request_id or ""
            by = {"model": f"model version {page.model_version}", "control": "a random page"}.get(page.arm, page.arm)
            known = [(item.position, self.products.get(str(item.item_id))) for item in page.items]
            shown = [(position, one) for position, one in known if one is not None]
        products = [{**msgspec.to_builtins(one), "position": position} for position, one in shown]
        return JSONResponse({"request_id": made, "by": by, "products": products}, headers=HEADERS)

    async def seen(self, request: Request) -> Response:
        """What came into view."""
        given = await _read(request, Seen)
        page = self.pages.get((_visitor(request), given.request_id))
        if page is not None:
            with suppress(NotOnPage):  # what a browser says is checked, never believed
                await self.millrace.exposure(page, shown=given.positions)
        return Response(status_code=204)

    async def click(self, request: Request) -> Response:
        """What was opened."""
        given = await _read(request, Clicked)
        page = self.pages.get((_visitor(request), given.request_id))
        if page is not None:
            with suppress(NotOnPage):
                await self.millrace.click(page, given.item_id)
        return Response(status_code=204)


def _visitor(request: Request) -> str:
    visitor = request.cookies.get(COOKIE, "")
    if not 0 < len(visitor) <= 64:
        raise HTTPException(400, "no cookie; open the shop's page first")
    return visitor


async def _read(request: Request, kind: type[R]) -> R:
    try:
        return msgspec.json.decode(await request.body(), type=kind)
    except msgspec.DecodeError as error:
        raise HTTPException(400, f"bad request: {error}") from None


def make_app(millrace: AsyncMillrace, products: Mapping[str, Product]) -> Starlette:
    """The shop as an ASGI application. It closes the client at its end."""
    shop = Shop(millrace, products)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        sending = asyncio.create_task(shop.send_catalogue())
        try:
            yield
        finally:
            sending.cancel()
            with suppress(MillraceClientError):
                await millrace.close()

    routes = [
        Route("/", shop.home),
        Route("/products", shop.list_products),
        Route("/seen", shop.seen, methods=["POST"]),
        Route("/click", shop.click, methods=["POST"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def main() -> None:
    parser = argparse.ArgumentParser(description="A small shop whose page follows what its visitors click.")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--items", type=int, default=120, help="products in the catalogue")
    asked = parser.parse_args()

    async def serve() -> None:
        app = make_app(AsyncMillrace(), make(asked.items))  # addresses: MILLRACE_INTAKE, MILLRACE_SCORER, or the usual
        config = uvicorn.Config(app, host="127.0.0.1", port=asked.port, log_level="warning")
        print(f"the shop is at http://127.0.0.1:{asked.port}/", flush=True)
        await uvicorn.Server(config).serve()

    with suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()
