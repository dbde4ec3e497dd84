#!/usr/bin/env bash
# run.sh FOLDER COMMAND...: with a GPU that is not there. FAKE_SM=90 FAKE_MEM=85e9 FAKE_NAME="..." FAKE_GPUS=2 FAKE_NCCL_LOG=FILE choose it.
to=$(cd "$1" && pwd); shift
export PATH="$to/venv/bin:$PATH" LD_PRELOAD="$to/lib/libcuda.so.1 $to/lib/libfakenccl.so" LD_LIBRARY_PATH="$to/lib" TRITON_LIBCUDA_PATH="$to/lib"
export TORCHINDUCTOR_CACHE_DIR="$to/inductor" TRITON_CACHE_DIR="$to/triton" TORCHINDUCTOR_COMPILE_THREADS=1
exec "$@"
