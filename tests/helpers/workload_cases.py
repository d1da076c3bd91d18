"""Sites, offers and devices that several tests of the workloads use."""

from __future__ import annotations

import msgspec

from cosched.profiles.device import Device, Host, Power
from cosched.profiles.model import Model
from cosched.resources import config_file
from cosched.site import Cell, DeviceShare, ModelRef, Node, Site, Ues, load_site
from cosched.workloads.base import ServedModel, WorkloadContext
from cosched.workloads.context import SiteProfiles, load_profiles
from cosched.workloads.quality import ActivationQuality, QualityTable
from telemetry.messages import LlmSession, TaskOffer, VideoClip

SESSION = LlmSession(
    model="llama-3-8b", context_tokens=800, new_tokens=100, max_output_tokens=300, ttft_s=2.0, tpot_s=0.2
)
CLIP = VideoClip(frame_flop=60e9, frame_bits=0.5e6, fps=5.0, deadline_s=0.2, frames=40)


def offer(work: LlmSession | VideoClip, weight: float = 1.0, **changes: object) -> TaskOffer:
    """Offer `work` as task t1, with `changes` made to it."""
    work = msgspec.structs.replace(work, **changes)
    return TaskOffer(at_ns=0, source="test", seq=0, task="t1", ue="ue0", work=work, weight=weight)


def shipped(site: str) -> SiteProfiles:
    """Profiles of a site that ships."""
    return load_profiles(load_site(config_file("sites", f"{site}.toml")))


def quality(**values: float) -> QualityTable:
    """Quality by precision, `bits16=1.0` and so on."""
    entries = {
        int(name.removeprefix("bits")): ActivationQuality(
            value=value, ci95=0.0, wire_bits_per_value=16.0, scheme="test", source="test", guess=f"guess of {name}"
        )
        for name, value in values.items()
    }
    return QualityTable(v=1, activation=entries)


def plain_device(key: str, flop_s: float, bytes_s: float, *, memory_bytes: float = 1e12) -> Device:
    """Return a device whose times can be worked out by hand: every efficiency is 1, every overhead 0."""
    return Device(
        key=key, name=key, kind="llamacpp", weight_format="gguf", guess=("decode",), sources={},
        peak_flop_s=flop_s, mem_bw_bytes_s=bytes_s, memory_bytes=memory_bytes,
        compute_efficiency=1.0, memory_efficiency=1.0, gemm_overhead_s=0.0, layer_overhead_s=0.0,
        elementwise_efficiency=1.0, elementwise_overhead_s=0.0, attention_efficiency=1.0, kv_efficiency=1.0,
        attention_prefill_overhead_s=0.0, attention_decode_overhead_s=0.0, link_bytes_s=None, link_latency_s=0.0,
        power_w=Power(idle=1.0, busy=10.0), ul_tx_power_w=1.0,
    )  # fmt: skip


def plain_host(layer_s: float, sequence_s: float, prompt_token_s: float) -> Host:
    """Return a host with these terms, measured on no device."""
    return Host(
        key="host", name="Host", guess=(), measured_on=(), source="",
        layer_s=layer_s, sequence_s=sequence_s, prompt_token_s=prompt_token_s,
    )  # fmt: skip


TOY = Model(
    name="toy", family="llama", n_layers=4, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, gated=True, vocab=32,
    tied=False,
)  # fmt: skip


def toy_context(*, host: Host | None = None, max_layers: int | None = None, **node: object) -> WorkloadContext:
    """Return a context of the toy model at 16 bit, one node at ten times the device's speed, 3 ms one way to the cell.

    The device reads a layer's weights in 3 ms and computes two tokens of it in 4 ms: a hypot of 5 ms.
    """
    edge = msgspec.structs.replace(Node(id="edge0", device="edge"), **node)
    ref = ModelRef(id="toy", config="toy", weight_bits=16, activation_bits=(16, 8))
    device = plain_device("ue", 576e3, 384e3)
    site = Site(
        v=1, name="toy", cells=(Cell(id="cell0", ul_prbs=10),), nodes=(edge,),
        models=(ref,), ues=Ues(count=1, devices=(DeviceShare(device="ue", share=1.0),)),
    )  # fmt: skip
    none = plain_host(0.0, 0.0, 0.0)
    return WorkloadContext(
        site=site,
        device=device,
        max_layers=max_layers,
        cell_one_way_s=0.003,
        node_devices=(plain_device("edge", 5.76e6, 3.84e6),),
        node_hosts=(host or none,),
        models={"toy": ServedModel(ref=ref, model=TOY)},
        quality=quality(bits16=0.999, bits8=0.9),
    )
