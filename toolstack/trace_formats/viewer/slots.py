"""What the bytes of a ring's slot say: as a request, and as a response.

Which of the two a slot holds is not in its bytes: it follows from the indices of the ring at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hypervisor.abi.io import blkif, netif
from hypervisor.abi.layout import Layout

_INDIRECT: Final = blkif.BLKIF_OP_INDIRECT
_SEGMENT_SIZE: Final = blkif.blkif_request_segment.size
_DISCARD: Final = blkif.BLKIF_OP_DISCARD


def decode_slot(layout: str, data: bytes) -> tuple[str, str]:
    """Return the slot of a ring as a request and as a response, in words; two empty strings for an unknown ring."""
    decode = _DECODERS.get(layout)
    if decode is None:
        return "", ""
    if not any(data):
        return "(zero)", "(zero)"
    return decode(data)


def _operation(number: int) -> str:
    return blkif.NAMES.get(number, f"operation {number}").removeprefix("BLKIF_OP_")


def _block(transfer: Layout, indirect: Layout, discard: Layout, response: Layout) -> Callable[[bytes], tuple[str, str]]:
    def request(data: bytes) -> str:
        if data[0] == _INDIRECT:
            far = indirect.unpack(data[: indirect.size])
            pages = far.indirect_grefs[: -(-far.nr_segments * _SEGMENT_SIZE // 4096)]
            return (
                f"INDIRECT {_operation(far.indirect_op)} id={far.id} sector={far.sector_number} "
                f"{far.nr_segments} segments in pages {list(pages)}"
            )
        if data[0] == _DISCARD:
            trim = discard.unpack(data[: discard.size])
            return f"DISCARD id={trim.id} sector={trim.sector_number} {trim.nr_sectors} sectors flag={trim.flag}"
        plain = transfer.unpack(data[: transfer.size])
        segments = ", ".join(
            f"gref {segment.gref} sectors {segment.first_sect}-{segment.last_sect}"
            for segment in plain.seg[: plain.nr_segments]
        )
        return f"{_operation(plain.operation)} id={plain.id} sector={plain.sector_number} [{segments}]"

    def both(data: bytes) -> tuple[str, str]:
        answer = response.unpack(data[: response.size])
        status = blkif.STATUS_NAMES.get(answer.status, str(answer.status))
        return request(data), f"{_operation(answer.operation)} id={answer.id} {status}"

    return both


_TX_FLAGS: Final = {
    netif.NETTXF_csum_blank: "csum_blank",
    netif.NETTXF_data_validated: "data_validated",
    netif.NETTXF_more_data: "more_data",
    netif.NETTXF_extra_info: "extra_info",
}
_RX_FLAGS: Final = {
    netif.NETRXF_data_validated: "data_validated",
    netif.NETRXF_csum_blank: "csum_blank",
    netif.NETRXF_more_data: "more_data",
    netif.NETRXF_extra_info: "extra_info",
}


def _flags(value: int, names: dict[int, str]) -> str:
    found = [name for bit, name in names.items() if value & bit]
    return " " + "+".join(found) if found else ""


def _transmission(data: bytes) -> tuple[str, str]:
    request = netif.netif_tx_request.unpack(data[: netif.netif_tx_request.size])
    response = netif.netif_tx_response.unpack(data[: netif.netif_tx_response.size])
    status = netif.RSP_NAMES.get(response.status, str(response.status))
    flags = _flags(request.flags, _TX_FLAGS)
    return (
        f"id={request.id} gref {request.gref} offset {request.offset} size {request.size}{flags}",
        f"id={response.id} {status}",
    )


def _reception(data: bytes) -> tuple[str, str]:
    request = netif.netif_rx_request.unpack(data[: netif.netif_rx_request.size])
    response = netif.netif_rx_response.unpack(data[: netif.netif_rx_response.size])
    flags = _flags(response.flags, _RX_FLAGS)
    got = f"{response.status} bytes" if response.status >= 0 else netif.RSP_NAMES.get(response.status, "error")
    return f"id={request.id} gref {request.gref}", f"id={response.id} offset {response.offset} {got}{flags}"


def _control(data: bytes) -> tuple[str, str]:
    request = netif.xen_netif_ctrl_request.unpack(data[: netif.xen_netif_ctrl_request.size])
    response = netif.xen_netif_ctrl_response.unpack(data[: netif.xen_netif_ctrl_response.size])
    kind = netif.CTRL_NAMES.get(request.type, f"type {request.type}").removeprefix("XEN_NETIF_CTRL_TYPE_")
    return (
        f"{kind} id={request.id} data={list(request.data)}",
        f"id={response.id} status={response.status} data={response.data}",
    )


def _text(data: bytes) -> tuple[str, str]:
    shown = "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in data)
    return shown, shown


_DECODERS: Final[dict[str, Callable[[bytes], tuple[str, str]]]] = {
    "blkif": _block(
        blkif.blkif_request, blkif.blkif_request_indirect, blkif.blkif_request_discard, blkif.blkif_response
    ),
    "blkif_x86_32": _block(
        blkif.blkif_x86_32_request,
        blkif.blkif_x86_32_request_indirect,
        blkif.blkif_x86_32_request_discard,
        blkif.blkif_x86_32_response,
    ),
    "netif_tx": _transmission,
    "netif_rx": _reception,
    "netif_ctrl": _control,
    "xenstore": _text,
    "console": _text,
}
