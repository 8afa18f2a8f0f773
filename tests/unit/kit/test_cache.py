"""The watch task of a Store."""

import asyncio
from typing import Any

import msgspec
from structlog.testing import capture_logs

from api.k8s.objects import ConfigMap
from kit.cache import Store
from tests.unit.tasklab import assert_cancels_caller, others, settle


class SlowKube:
    """A client whose calls take time to be cancelled."""

    async def list(self, *_: Any, **__: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)


async def test_stop_leaves_no_task() -> None:
    store: Store[ConfigMap] = Store(SlowKube(), ConfigMap)  # type: ignore[arg-type]
    store.start()
    await settle()
    await store.stop()
    assert not others()


async def test_cancelling_the_caller_of_stop_cancels_it() -> None:
    store: Store[ConfigMap] = Store(SlowKube(), ConfigMap)  # type: ignore[arg-type]
    store.start()
    await settle()
    await assert_cancels_caller(store.stop(), lambda: None)
    await store.stop()


async def test_exception_in_a_callback_is_logged_with_the_object() -> None:
    store: Store[ConfigMap] = Store(SlowKube(), ConfigMap)  # type: ignore[arg-type]

    def fail(_old: object, _new: object) -> None:
        raise LookupError("odd")

    store.on_change(fail)
    with capture_logs() as lines:
        store.learn(config_map("settings"))
    (line,) = lines
    assert (line["resource"], line["namespace"], line["name"]) == ("configmaps", "default", "settings")


def config_map(name: str) -> ConfigMap:
    return msgspec.convert({"metadata": {"namespace": "default", "name": name, "resourceVersion": "1"}}, ConfigMap)
