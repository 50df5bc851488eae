# What stands in for a runtime that is not on this machine: a network is measured on the CPU once for all targets whose
# forms, image size, batch and settings under `bench` are the same. Where a target of this machine's own measures just
# that, its bench.json serves, and there is no job here.

REFERENCES = jobs.references(CONFIG)
measured = jobs.measured(REFERENCES)


rule reference:
    input:
        checkpoint=weights,
        fused="artifacts/{model}/fused.pt2",
        verify="artifacts/{model}/verify.json",
        quantized=lambda wildcards: (
            f"artifacts/{wildcards.model}/quantized.pt2" if measured(wildcards).precision == "int8" else []
        ),
    output:
        "artifacts/{model}/{reference}.json",
    log:
        "logs/{model}/{reference}.log",
    wildcard_constraints:
        reference="|".join(name for several in REFERENCES.values() for name in several) or "(?!)",
    priority: PRIORITY
    threads: lambda wildcards: max(measured(wildcards).bench.threads)
    resources:
        machine=100,
    params:
        settings=lambda wildcards: measured(wildcards).model_dump_json(),
        quantized=lambda _, input: ["--quantized", input.quantized] if input.quantized else [],
        code=lambda wildcards: digests.code_digest(
            "pipeline.stages.reference",
            backends.module_name(backends.stand_in(measured(wildcards).precision).name),
        ),
        network=network,
    message:
        "timing {wildcards.model} on this CPU for targets whose runtime is not here, alone on the machine"
    shell:
        "python -m pipeline reference --settings {params.settings:q} --checkpoint {input.checkpoint:q}"
        " --fused {input.fused:q} --output {output:q} {params.quantized:q} > {log:q} 2>&1"
