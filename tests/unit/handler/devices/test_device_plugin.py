"""Health of device plugin devices."""

from handler.devices.device_plugin import openable


async def test_missing_device_is_unhealthy(tmp_path):
    verdict = await openable(str(tmp_path / "none"))
    assert not verdict.works and "No such file" in verdict.sentence
