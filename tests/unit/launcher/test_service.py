"""Status codes of calls by exception."""

from typing import Any

import grpc
import pytest

from launcher.domain_builder.process import BuildError
from launcher.hypervisor.connection import HypervisorError, Unavailable
from launcher.network.dhcp_service import DhcpError
from launcher.service import refuse
from launcher.vm.errors import OperationRefused


class Aborted(Exception):
    """What gRPC's abort raises."""


class Context:
    """Fake context that supports abort."""

    status: tuple[grpc.StatusCode, str] | None = None

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.status = (code, details)
        raise Aborted


async def ended(error: Exception) -> Any:
    context = Context()
    with pytest.raises(Aborted):
        await refuse(context, error, "VmController.pause")
    return context.status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OperationRefused("FAILED_PRECONDITION", "words"), grpc.StatusCode.FAILED_PRECONDITION),
        (BuildError("INVALID_ARGUMENT", "words"), grpc.StatusCode.INVALID_ARGUMENT),
        (DhcpError("words"), grpc.StatusCode.INTERNAL),
        (HypervisorError("words"), grpc.StatusCode.INTERNAL),
        (Unavailable("words"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_known_exceptions_map_to_status_without_log(
    error: Exception, code: grpc.StatusCode, capfd: pytest.CaptureFixture[str]
) -> None:
    assert await ended(error) == (code, "words")
    assert not any(capfd.readouterr())


async def test_unhandled_exception_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    assert await ended(LookupError("odd")) == (grpc.StatusCode.INTERNAL, "odd")
    logged = "".join(capfd.readouterr())
    assert "LookupError('odd')" in logged and "VmController.pause" in logged


async def test_details_are_truncated_to_grpc_limit() -> None:
    _, details = await ended(DhcpError("é" * 5000))
    assert details == "é" * 1024
