"""The OpenAPI document: what generated clients and their readers need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from app.main import create_app
from app.settings import Settings
from tests.unit.app.conftest import ClientFactory

SCHEMA = create_app(Settings(redis_url="redis://127.0.0.1:1/0")).openapi()
PUBLIC = {"/health/live", "/health/ready", "/health/seen"}


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            if method != "servers":
                yield path, operation


OPERATIONS = [operation for _, operation in operations(SCHEMA)]
BY_NAME = pytest.mark.parametrize("operation", OPERATIONS, ids=[one["operationId"] for one in OPERATIONS])


def component(content: dict[str, Any]) -> dict[str, Any]:
    reference = content["schema"]["$ref"]
    found: dict[str, Any] = SCHEMA["components"]["schemas"][reference.removeprefix("#/components/schemas/")]
    return found


def check_examples(schema: dict[str, Any]) -> None:
    assert schema["examples"], schema["title"]
    validator = Draft202012Validator({**schema, "components": SCHEMA["components"]})
    for example in schema["examples"]:
        validator.validate(example)


def test_operations_have_the_names_of_methods() -> None:
    names = [operation["operationId"] for operation in OPERATIONS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in names)
    assert set(names) >= {
        *("generate", "generate_class", "get_job", "list_jobs", "cancel_job", "get_image", "get_grid"),
        *("get_events", "get_attention", "get_attention_map", "list_models", "get_model", "get_previews"),
        *("list_classes", "create_images", "list_openai_models", "get_openai_model", "live", "ready"),
        "get_metrics",
    }


@BY_NAME
def test_bodies_and_answers_are_components_with_examples(operation: dict[str, Any]) -> None:
    contents = [operation["requestBody"]["content"]] if "requestBody" in operation else []
    contents += [one.get("content", {}) for code, one in operation["responses"].items() if code[0] == "2"]
    assert contents
    for content in contents:
        if "application/json" in content:
            assert next(iter(content)) == "application/json"  # generated clients read the first
            check_examples(component(content["application/json"]))
        for kind in content.keys() - {"application/json", "text/event-stream", "text/plain"}:
            assert content[kind]["schema"] == {"type": "string", "format": "binary"}, kind


@BY_NAME
def test_headers_are_single_values(operation: dict[str, Any]) -> None:
    headers = [one for one in operation.get("parameters", []) if one["in"] == "header"]
    assert all(header["schema"].get("type") != "array" for header in headers)
    told = {header["name"] for header in headers}
    orders = operation["operationId"] in ("generate", "generate_class", "morph", "create_images")
    assert told == ({"Prefer", "Idempotency-Key", "Cancel-After"} if orders else set())


@BY_NAME
def test_operations_have_a_tag_and_a_sentence(operation: dict[str, Any]) -> None:
    described = {tag["name"]: tag["description"] for tag in SCHEMA["tags"]}
    assert len(operation["tags"]) == 1
    assert described[operation["tags"][0]].endswith(".")
    assert operation["description"]


def test_licence() -> None:
    assert SCHEMA["info"]["license"] == {"name": "MIT", "identifier": "MIT"}


async def test_servers(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert [server["url"] for server in document["servers"]] == ["/", "/v1"]
    assert document["paths"]["/v1/models"]["servers"] == [{"url": "/"}]
    assert "servers" not in document["paths"]["/models"]
    versioned = (await client.get("/v1/openapi.json")).json()
    assert [server["url"] for server in versioned["servers"]] == ["/v1", "/"]


async def test_servers_under_a_prefix(serve: ClientFactory) -> None:
    async with serve(root_path="/api/v1") as client:
        for path in ("/openapi.json", "/api/v1/openapi.json"):
            document = (await client.get(path)).json()
            assert [server["url"] for server in document["servers"]] == ["/api/v1", "/api/v1/v1"]
            assert document["paths"]["/v1/models"]["servers"] == [{"url": "/api/v1"}]


async def test_security_is_told_as_it_is(serve: ClientFactory) -> None:
    assert "security" not in SCHEMA
    async with serve(api_keys="k") as client:
        schema = (await client.get("/openapi.json")).json()
        assert {path for path, one in operations(schema) if one.get("security") == []} == PUBLIC
        for path, operation in operations(schema):
            address = path.format(class_id="1", job_id="x" * 22, index=0, name="x")
            method = "post" if "requestBody" in operation else "get"
            reply = await client.request(method, address)
            assert (reply.status_code == 401) == (path not in PUBLIC), path


async def test_docs_are_dark_where_the_reader_is(client: httpx.AsyncClient) -> None:
    start = (await client.get("/docs-start.js")).text
    assert "prefers-color-scheme: dark" in start
    assert ".dark-mode" in (await client.get("/docs-assets/swagger-ui.css")).text
