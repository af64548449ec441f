# ssl-seg in a container. From the folder of the source:
#   docker build --tag ssl-seg .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" ssl-seg train --data my_data --out runs/first
# With an NVIDIA GPU and its container toolkit: docker run --gpus all --shm-size 2g ...
FROM python:3.11-slim AS build
WORKDIR /source
RUN pip install --no-cache-dir "build==1.*"
COPY pyproject.toml README.md LICENSE ./
COPY ssl_seg ssl_seg
COPY configs configs
RUN python -m build --wheel --outdir /wheels

FROM python:3.11-slim
# The default torch has CUDA and several GB. --build-arg TORCH_INDEX=URL, with PyTorch's index of CPU builds, needs 200 MB.
ARG TORCH_INDEX
COPY --from=build /wheels /wheels
RUN if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch>=2.8,!=2.9.*,<2.14"; fi \
    && pip install --no-cache-dir "$(echo /wheels/*.whl)[formats]" \
    && rm -r /wheels
# Folders that an unknown user may write to: caches, and what the command is given.
ENV HOME=/tmp SSL_SEG_CACHE=/tmp/ssl_seg MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
ENTRYPOINT ["ssl-seg"]
CMD ["--help"]
