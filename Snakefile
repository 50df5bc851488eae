# From a configuration to files that run on a device, with a proof at every hop:
#
#   snakemake --cores 4 all                        everything that config.yaml and targets/ name
#   snakemake targets/tensorrt/bench.json          one target
#   snakemake artifacts/toy/fused.pt2              one artifact
#   snakemake --cores 4 bundles                    one file a model and target in dist/, to bring to a device
#   snakemake --cores 4 all --config 'training={epochs: 3}'
#
# Rules call stages: `python -m pipeline <stage> --help`. profiles/default/config.yaml sets the cores.
import os
import sys
from pathlib import Path

from pipeline import backends, lifetime
from pipeline.artifacts import digests, own_code
from pipeline.data import splits
from pipeline.stages import jobs, progress, wanted

CONFIG = jobs.configure(config, workflow.config_settings.replace_workflow_config)
FOLLOWED = []


onstart:
    lifetime.begin_run()  # stages end with this run, even if it is killed
    jobs.tell_left_out(CONFIG)
    FOLLOWED.append(progress.follow())


# What failed, all that depends on it lacks; the others were built (`keep-going` in the profile), and are reported.
onerror:
    failed = progress.conclude(FOLLOWED[0], workflow)
    if command := jobs.partial_report(CONFIG, failed):
        shell("{command}")


onsuccess:
    jobs.tell_report(workflow)


wildcard_constraints:
    model="|".join(CONFIG.models),
    target="|".join(CONFIG.targets),


include: "workflows/models.smk"
include: "workflows/quantize.smk"
include: "workflows/targets.smk"
include: "workflows/references.smk"
include: "workflows/report.smk"
include: "workflows/bundles.smk"


rule all:
    default_target: True
    input:
        expand("targets/{target}/bench.json", target=CONFIG.targets),
        expand("artifacts/{model}/report.md", model=CONFIG.models if len(CONFIG.models) > 1 else []),
        "report.md",
        "report.html",


wanted.require_known(workflow, CONFIG, sys.argv[1:])
