from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from af.cli.main import main


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--ice", "http://x"], "--ice http://x: give stun:HOST:PORT"),
        (["--tls-certificate", "none.pem"], "--tls-certificate none.pem: cannot be used"),
        (["--portrait", "none.png"], "none.png: no such file"),
        (["--conversations", "0"], "conversations"),
        (["--replay", "none"], "none"),
    ],
)
def test_wrong_options_are_said_before_anything_is_served(
    autoencoder_folder, denoiser_folder, capsys, options, text
) -> None:
    models = ["--autoencoder", str(autoencoder_folder), "--denoiser", str(denoiser_folder)]
    try:
        code = main(["live", *models, *options])
    except SystemExit as error:
        code = error.code
    assert code in (1, 2)
    assert text in capsys.readouterr().err


def test_models_are_given_together_or_not_at_all(autoencoder_folder, capsys) -> None:
    assert main(["live", "--autoencoder", str(autoencoder_folder)]) == 1
    assert "give both, or neither" in capsys.readouterr().err


@pytest.mark.slow  # a process of its own
def test_it_serves_until_ctrl_c_and_asks_others_for_the_token(autoencoder_folder, denoiser_folder) -> None:
    command = [sys.executable, "-m", "af.cli.main", "live", "--autoencoder", str(autoencoder_folder)]
    command += ["--denoiser", str(denoiser_folder), "--host", "0.0.0.0", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a shell's background jobs ignore it
    with subprocess.Popen(command, **pipes, **heard) as process:
        try:
            address = process.stdout.readline().removeprefix("open ").strip().replace("0.0.0.0", "127.0.0.1")
            place, _, token = address.partition("?")
            assert token

            def about(query: str) -> dict:
                with urllib.request.urlopen(f"{place}about{query}", timeout=30) as answer:
                    return json.load(answer)

            assert about(f"?{token}")["size"] == 32
            with pytest.raises(urllib.error.HTTPError, match="401"):
                about("")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
            assert "the server has stopped" in process.stderr.read()
        finally:
            process.kill()
