"""llama.cpp's server, run by the Python of a venv that has xllamacpp; imports nothing of Helios.

Usage: llama_cpp_server.py MODEL PORT NUM_SLOTS TOKENS_PER_SLOT NUM_THREADS
"""

import signal
import sys

import xllamacpp


def main(argv: list[str]) -> None:
    model, port, num_slots, slot_tokens, num_threads = argv[0], *map(int, argv[1:])
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = num_slots
    params.n_ctx = num_slots * slot_tokens  # shared out among slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads
    params.fit_params = False  # keeps the context as it is
    params.cache_ram_mib = 0  # no prompt comes again: copies of old ones would only cost time
    # a signal that no thread handles until `sigwait` takes it; the server's threads inherit the mask
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))
    print(xllamacpp.get_system_info(), flush=True)
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait((signal.SIGTERM, signal.SIGINT))


if __name__ == "__main__":
    main(sys.argv[1:])
