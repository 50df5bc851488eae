# Once a model that a target wants in int8: one int8 program, from which the files of all of them are made.


rule quantize:
    input:
        fused="artifacts/{model}/fused.pt2",
        verify="artifacts/{model}/verify.json",
        split="artifacts/split.json",
    output:
        quantized="artifacts/{model}/quantized.pt2",
        report="artifacts/{model}/quantize.json",
    log:
        "logs/{model}/quantize.log",
    priority: PRIORITY
    params:
        settings=jobs.settings(CONFIG, "quantize"),
        code=digests.code_digest("pipeline.stages.quantize"),
    message:
        "making {wildcards.model} int8; a step of repair a line in {log}"
    shell:
        "python -m pipeline quantize --settings {params.settings:q} --fused {input.fused:q} --verify {input.verify:q}"
        " --split {input.split:q} --quantized {output.quantized:q} --report {output.report:q} > {log:q} 2>&1"
