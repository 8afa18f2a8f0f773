"""What the oldest supported API server serves, recorded: `tests/golden/discovery/v1.34.json`.

    python -m tests.discovery DOCUMENT

DOCUMENT is the server's aggregated discovery (APIGroupDiscoveryList of apidiscovery.k8s.io/v2), either
`api/discovery/aggregated_v2.json` of the Go module k8s.io/kubernetes in that version, which Kubernetes' own scripts
record from that version's server, or the answer of a running one:

    curl -H 'Accept: application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList' https://SERVER/apis

Both lack the core group, whose resources are in `api__v1.json` beside the first and at /api/v1 of the second: a second
DOCUMENT adds them. Only stable versions are kept. What is recorded is v1.34.4's, of the Go module.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

Served = dict[str, dict[str, list[str]]]
"""Group and version (`apps/v1`, `v1`) → resource or resource/subresource → verbs."""

OLDEST = "v1.34"
RECORDED = Path(__file__).parent / "golden" / "discovery" / f"{OLDEST}.json"
STABLE = re.compile(r"v[0-9]+")


def served(documents: list[dict[str, Any]]) -> Served:
    """The stable part of discovery documents, sorted."""
    found: Served = {}
    for document in documents:
        if document["kind"] == "APIResourceList":
            resources = {each["name"]: sorted(each["verbs"]) for each in document["resources"]}
            found.setdefault(document["groupVersion"], {}).update(resources)
            continue
        for group in document["items"]:
            for version in group["versions"]:
                name = group["metadata"].get("name")
                place = f"{name}/{version['version']}" if name else version["version"]
                for resource in version["resources"]:
                    entries = {resource["resource"]: resource["verbs"]} | {
                        f"{resource['resource']}/{sub['subresource']}": sub["verbs"]
                        for sub in resource.get("subresources", [])
                    }
                    found.setdefault(place, {}).update({key: sorted(verbs) for key, verbs in entries.items()})
    return {
        place: dict(sorted(resources.items()))
        for place, resources in sorted(found.items())
        if STABLE.fullmatch(place.rpartition("/")[2])
    }


def recorded() -> Served:
    """What was recorded."""
    document: Served = json.loads(RECORDED.read_text())
    return document


if __name__ == "__main__":
    given = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    lines = [
        f'"{place}": {{\n' + ",\n".join(f"  {json.dumps(name)}: {json.dumps(verbs)}" for name, verbs in found.items())
        for place, found in served(given).items()
    ]
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text("{\n" + "},\n".join(lines) + "}\n}\n")
