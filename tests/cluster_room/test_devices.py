"""What is said of GPUs that torch cannot use, and the plans of machines with few."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
import torch

from rayrec.cluster import address, devices
from rayrec.cluster.reserve import cards
from rayrec.config import BaselinesConfig, Config
from rayrec.driver.checks import resolve
from rayrec.methods import parse

VERSION = "NVRM version: NVIDIA UNIX {} Kernel Module {} {}  Thu Oct 26 2025\n"


def machine(root: Path, driver: str, count: int = 1) -> Path:
    """The files of a driver and its GPUs."""
    for i in range(count):
        (root / devices._GPUS / f"0000:0{i}:00.0").mkdir(parents=True)
    (root / devices._VERSION).write_text(VERSION.format("Open", "for x86_64 ", driver))
    return root


def test_cpus_are_those_of_the_containers_quota(tmp_path: Path) -> None:
    here = devices.cores(tmp_path)
    assert 1 <= here <= (os.cpu_count() or 1)
    (tmp_path / devices._QUOTA).parent.mkdir(parents=True)
    for text, wanted in (("max 100000", here), ("150000 100000", 1), ("50000 100000", 1), ("6400000 100000", here)):
        (tmp_path / devices._QUOTA).write_text(text + "\n")
        assert devices.cores(tmp_path) == wanted


@pytest.mark.parametrize("form", [("x86_64", "", "535.129.03"), ("Open", "for x86_64 ", "535.129.03")])
def test_an_old_driver_is_named_with_the_one_that_torch_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, str, str]
) -> None:
    assert devices.unusable(tmp_path) == ""  # no driver, no GPU
    root = machine(tmp_path, "535.129.03", 2)
    (root / devices._VERSION).write_text(VERSION.format(*form))
    monkeypatch.setattr("torch.version.cuda", "13.0")
    said = devices.unusable(root)
    assert "2 GPUs with driver 535, and torch" in said and "of CUDA 13.0 wants driver 580 or newer" in said
    monkeypatch.setattr("torch.version.cuda", "12.8")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' shows none of them. Unset it" in devices.unusable(root)
    monkeypatch.setattr("torch.version.cuda", None)
    assert "computes on CPUs alone. Install rayrec[gpu]" in devices.unusable(root)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert devices.unusable(root) == ""


def test_a_process_that_cannot_use_its_gpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"torch finds no CUDA device\. Run nvidia-smi there, or take --device cpu\."):
        devices.check_gpu()


def test_gloo_takes_the_interface_of_the_nodes_address(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {place.address: name for name, places in psutil.net_if_addrs().items() for place in places}
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    devices.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    devices.choose_interface()
    assert os.environ["GLOO_SOCKET_IFNAME"] == there["127.0.0.1"]


def settled(count: int, *args: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The plan of a machine with so many GPUs."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    config = parse("", ["--address", "local", *args])
    gpu = address.has_gpu(config)
    return resolve(address.settle_placement(config, gpu), gpu)


def test_one_gpu_is_shared_without_being_asked_for_and_two_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, args, kind, wanted in (
        (0, (), "apart", 2),
        (1, (), "shared", 1),
        (2, (), "apart", 2),
        (8, ("--train-workers", "4", "--generators", "4"), "apart", 8),
        (4, ("--train-workers", "4", "--generators", "4", "--placement", "shared"), "shared", 4),
        (4, ("--train-workers", "4", "--placement", "shared"), "shared", 4),
        (1, ("--device", "cpu"), "apart", 2),
    ):
        config = settled(count, *args, monkeypatch=monkeypatch)
        assert (config.placement.placement, cards(config)) == (kind, wanted), (count, args)
        assert config.placement.sequential == (kind == "shared")
    with pytest.raises(ValueError, match=r"The plan takes 2 GPUs, this machine has 1\..*add --placement shared"):
        settled(1, "--placement", "apart", monkeypatch=monkeypatch)
    assert cards(BaselinesConfig()) == 1


def test_precision_and_stage_follow_from_device_and_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ("--model", "some/model")
    for count, args, dtype, stage in (
        (0, real, "float32", 1),
        (1, real, "bfloat16", 0),
        (1, (*real, "--lora-rank", "0"), "bfloat16", 2),
        (1, (), "float32", 2),
        (1, (*real, "--dtype", "float32", "--zero-stage", "3"), "float32", 3),
    ):
        train = settled(count, *args, monkeypatch=monkeypatch).train
        assert (train.dtype, train.zero_stage) == (dtype, stage), (count, args)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--generators", "3"], "3 generators and 1 trainers. Take --generators 1"),
        (["--train-workers", "2:8"], "--train-workers 2:8 changes their number. Take --train-workers 2"),
    ],
)
def test_shared_pairs_fixed_numbers(args: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(parse("", ["--placement", "shared", *args]))


def test_a_model_is_opened_with_cudnns_attention_off(tmp_path: Path) -> None:
    from rayrec.models.policy import load_base
    from rayrec.models.settings import ModelConfig
    from rayrec.models.tiny import make_tiny

    make_tiny(["Red River", "Blue House"], ModelConfig(tiny_hidden=32, tiny_layers=1, tiny_vocab=300), tmp_path, 0)
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_base(tmp_path)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
