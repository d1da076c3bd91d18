"""EdgeRIC's messages as the protobuf library builds them, field by field: the reference that the decoder is held to."""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# schema -> message -> its fields as in metrics.proto; the first message is that of a TTI
_PROTOS: Final = {
    "tti": {
        "TtiMetrics": "uint32 tti_index=1, uint64 timestamp_us=2, UeMetrics ues=3, uint32 slot_duration_ns=7",
        "UeMetrics": "uint32 rnti=1, MacUeMetrics mac=2",
        "MacUeMetrics": "uint32 cqi=1, float snr=2, uint32 dl_buffer=3, uint32 ul_buffer=4, uint32 dl_tbs=5,"
        "uint32 ul_tbs=6, uint32 dl_harq_ack=7, uint32 dl_harq_nack=8, uint32 ul_crc_ok=9, uint32 ul_crc_fail=10,"
        "uint32 dl_mcs=11, uint32 ul_mcs=12, uint32 dl_prbs=13, uint32 ul_prbs=14, float avg_ce_delay_ms=16",
    },
    "5g": {
        "Metrics": "uint32 tti_cnt=1, UeMetrics ue_metrics=2",
        "UeMetrics": "uint32 rnti=1, uint32 cqi=2, float snr=3, float tx_bytes=4, float rx_bytes=5,"
        "uint32 dl_buffer=6, uint32 ul_buffer=7, float dl_tbs=8",
    },
    "4g": {
        "Metrics": "uint32 tti_cnt=1, UeMetrics ue_metrics=2, uint32 ric_cnt=3",
        "UeMetrics": "uint32 rnti=1, uint32 cqi=2, uint32 backlog=3, float snr=4, uint32 pending_data=5,"
        "float tx_bytes=6, float rx_bytes=7",
    },
}
_SCALARS: Final = {"float": 2, "uint64": 4, "uint32": 13}  # FieldDescriptorProto.Type
_MESSAGE: Final = 11
_REPEATED: Final = ("ues", "ue_metrics")


def _build(schema: str) -> type[Any]:
    package = f"edgeric{schema}"
    proto = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message, fields in _PROTOS[schema].items():
        described = proto.message_type.add(name=message)
        for text in fields.split(","):
            kind, assignment = text.split()
            name, number = assignment.split("=")
            below = {} if kind in _SCALARS else {"type_name": f".{package}.{kind}"}
            label = 3 if name in _REPEATED else 1
            described.field.add(name=name, number=int(number), type=_SCALARS.get(kind, _MESSAGE), label=label, **below)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    first = next(iter(_PROTOS[schema]))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{first}"))


MESSAGES: Final = {schema: _build(schema) for schema in _PROTOS}
