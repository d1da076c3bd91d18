"""Reads what workloads need to know about a site, once: profiles, models, quality. The only file here that opens any.

profiles = load_profiles(site)
context = profiles.context_of(share_index, cell_index)
table = registry.points(offer, context)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from cosched.errors import BadInput
from cosched.profiles import quant
from cosched.profiles.calibration import Factors
from cosched.profiles.device import Device, Host, load_device, load_host
from cosched.profiles.model import load_model
from cosched.site import DeviceShare, ModelRef, Site
from cosched.workloads.base import Floats, ServedModel, WorkloadContext
from cosched.workloads.quality import QualityTable, load_quality

SESSION_PART: Final = 0.2  # of a slice is for KV caches at least, where nodes need not hold all models


@dataclass(frozen=True, slots=True)
class SiteProfiles:
    """A site's profiles; which UE has which device: cosched/simulate/offers.py."""

    site: Site
    devices: Mapping[str, Device]  # of UEs, by key
    node_devices: tuple[Device, ...]
    node_hosts: tuple[Host, ...]
    models: Mapping[str, ServedModel]
    quality: QualityTable
    _contexts: dict[tuple[int, int], WorkloadContext] = field(default_factory=dict, init=False, repr=False)

    def context_of(self, share: int, cell: int, factors: Factors = ()) -> WorkloadContext:
        """Context of a UE with the device of site.ues.devices[share] while cell number `cell` serves it.

        factors: what measurements correct profiled times by (cosched/profiles/calibration.py).
        """
        key = (share, cell)
        if key not in self._contexts:
            self._contexts[key] = self._new_context(self.site.ues.devices[share], cell)
        context = self._contexts[key]
        return replace(context, factors=dict(factors)) if factors else context

    def _new_context(self, share: DeviceShare, cell: int) -> WorkloadContext:
        return WorkloadContext(
            site=self.site,
            device=self.devices[share.device],
            max_layers=share.max_layers,
            cell_one_way_s=self.site.cells[cell].one_way_s,
            node_devices=self.node_devices,
            node_hosts=self.node_hosts,
            models=self.models,
            quality=self.quality,
        )


def load_profiles(site: Site, quality: QualityTable | None = None) -> SiteProfiles:
    """Read all that `site` refers to. Raises BadInput for what does not exist or does not go together."""
    quality = quality or load_quality()
    devices = {share.device: load_device(share.device) for share in site.ues.devices}
    node_devices = tuple(load_device(node.device) for node in site.nodes)
    formats = sorted({d.weight_format for d in (*devices.values(), *node_devices)})
    return SiteProfiles(
        site=site,
        devices=devices,
        node_devices=node_devices,
        node_hosts=tuple(load_host(node.host) for node in site.nodes),
        models={ref.id: _served(site, ref, quality, formats) for ref in site.models},
        quality=quality,
    )


def session_memory_bytes(profiles: SiteProfiles, *, placed: bool = False) -> Floats:
    """(nodes,) memory for KV caches: `memory_bytes` where the site gives it, else the slice's less all models' weights.

    Raises BadInput when the weights alone are too many, unless nodes are to hold only what there is room for (placed).
    """
    return np.array([_node_memory(profiles, i, placed=placed) for i in range(len(profiles.site.nodes))])


def weight_memory_bytes(profiles: SiteProfiles, short_bytes: Mapping[str, float]) -> Floats:
    """(nodes,) memory for weights where nodes hold what there is room for: what is not for KV caches.

    short_bytes: by node, what it lacks of what the site says; the caches go without that first.
    """
    nodes = profiles.site.nodes
    pairs = zip(nodes, profiles.node_devices, strict=True)
    slices = np.array([node.fraction * device.memory_bytes for node, device in pairs])
    short = np.array([short_bytes.get(node.id, 0.0) for node in nodes])
    taken = np.maximum(session_memory_bytes(profiles, placed=True), short)
    return np.asarray(np.maximum(slices - taken, 0.0))


def _node_memory(profiles: SiteProfiles, index: int, *, placed: bool) -> float:
    node, device = profiles.site.nodes[index], profiles.node_devices[index]
    if node.memory_bytes is not None:
        return node.memory_bytes
    slice_bytes = node.fraction * device.memory_bytes
    weights = sum(s.model.weight_bytes(s.ref.weight_bits, device.weight_format) for s in profiles.models.values())
    if placed:
        return max(slice_bytes - weights, SESSION_PART * slice_bytes)
    if weights >= slice_bytes:
        raise BadInput(
            f"{profiles.site.name}: nodes: {node.id}: the models' weights take {weights / 1e9:.1f} GB of "
            f"{slice_bytes / 1e9:.1f} GB: serve fewer models, use fewer weight bits or a greater fraction"
        )
    return slice_bytes - weights


def _served(site: Site, ref: ModelRef, quality: QualityTable, formats: Sequence[str]) -> ServedModel:
    for bits in ref.activation_bits:
        if bits not in quality.activation:
            there = ", ".join(map(str, sorted(quality.activation)))
            raise BadInput(f"{site.name}: models: {ref.id}: activation_bits {bits}: quality was measured at {there}")
    for name in formats:
        quant.weight_bits(ref.weight_bits, name)  # a width that a format does not have is refused here, not at an offer
    return ServedModel(ref=ref, model=load_model(ref.config))
