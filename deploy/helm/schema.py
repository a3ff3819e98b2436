"""values.schema.json of the chart: its own part is here, `config` is made from the settings' table.

python deploy/helm/schema.py        writes deploy/helm/warmroute/values.schema.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from router.config import TABLE
from router.config.kinds import Kind, Names, Quantity, Replicas, Switch, Text, Word
from router.config.table import Row

PATH = Path(__file__).parent / "warmroute" / "values.schema.json"

Schema = dict[str, Any]

BOOL: Schema = {"type": "boolean"}
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
MAP: Schema = {"type": "object"}
MARKS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
"""Labels and annotations: a number or a boolean would be refused by the API server later."""
LIST: Schema = {"type": "array", "items": {"type": "object"}}
TEXTS: Schema = {"type": "array", "items": {"type": "string"}}
COUNT_OR_SHARE: Schema = {"type": ["integer", "string"]}
PROBE: Schema = {"type": ["object", "null"]}
INTERVAL: Schema = {"type": "string", "pattern": r"^[0-9]+(ms|s|m)$"}
SOMETIMES_INTERVAL: Schema = {"type": "string", "pattern": r"^([0-9]+(ms|s|m))?$"}
OBJECTS: Schema = {"type": "array", "items": {"type": ["object", "string"]}}


def words(*allowed: str) -> Schema:
    """One of a few words."""
    return {"type": "string", "enum": list(allowed)}


def part(**properties: Schema) -> Schema:
    """A mapping of these names and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def or_null(schema: Schema) -> Schema:
    """The same, or nothing said."""
    types = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    return {**schema, "type": [*types, "null"]}


PLACES: dict[str, Schema] = {
    "nodeSelector": MARKS,
    "tolerations": LIST,
    "affinity": MAP,
    "priorityClassName": TEXT,
}
"""Where pods of a workload run."""
PATHS: Schema = {
    "type": "array",
    "minItems": 1,
    "items": {
        **part(path=TEXT, pathType=words("Prefix", "Exact", "ImplementationSpecific")),
        "required": ["path"],
    },
}
MONITOR: dict[str, Schema] = {
    "enabled": BOOL,
    "namespace": TEXT,
    "interval": INTERVAL,
    "scrapeTimeout": SOMETIMES_INTERVAL,
    "honorLabels": BOOL,
    "labels": MARKS,
    "relabelings": LIST,
    "metricRelabelings": LIST,
}


def setting(row: Row) -> Schema:
    """What a setting may be in YAML: the file reads every scalar as the text it is written as."""
    return {**_of(row.kind), "description": row.help}


def _of(kind: Kind) -> Schema:
    if isinstance(kind, Switch):
        return {"type": ["boolean", "string"]}
    if isinstance(kind, Word):
        return words(*kind.words)
    if isinstance(kind, Replicas | Names):
        return {"type": ["array", "string"], "items": {"type": "string"}}
    if isinstance(kind, Text):
        return {"type": ["string", "integer"], "pattern": f"^({kind.pattern})$"}
    if isinstance(kind, Quantity):
        if kind.placeholder == "NUMBER":
            return {"type": "integer", "minimum": kind.least, "maximum": kind.most}
        return {"type": ["string", "number"]}
    return {"type": "string"}


def schema() -> Schema:
    """The whole of it."""
    # A secret's place is a Secret: in `config` it would end up in a ConfigMap.
    config = part(**{name: setting(row) for name, row in TABLE.items() if not row.kind.secret})
    # The container's ports, the Services and the probes need to know these.
    for name in ("port", "admin_port"):
        config["properties"][name] = {**PORT, "description": TABLE[name].help}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$comment": "made by deploy/helm/schema.py",
        **part(
            config=config,
            existingConfigMap=TEXT,
            secret=part(
                name=TEXT,
                replicaApiKey=TEXT,
                adminKey=TEXT,
                statePassword=TEXT,
                isolationSecret=TEXT,
                isolationOldSecret=TEXT,
            ),
            tenants=MAP,
            disaggregation=part(
                decode=part(matchLabels=MARKS, port=PORT),
                prefill=part(matchLabels=MARKS, port=PORT),
            ),
            redis=part(
                mode=words("none", "external", "bundled"),
                url={
                    "type": "string",
                    "pattern": r"^$|^rediss?(\+sentinel)?://[^@]+$|^rediss?://[^:@/]+@",
                },
                image=TEXT,
                maxmemory=TEXT,
                resources=MAP,
                podAnnotations=MARKS,
                podLabels=MARKS,
                podSecurityContext=MAP,
                **PLACES,
            ),
            image=part(
                repository=TEXT,
                tag=TEXT,
                digest={"type": "string", "pattern": "^$|^sha256:[0-9a-f]{64}$"},
                pullPolicy=words("Always", "IfNotPresent", "Never"),
            ),
            imagePullSecrets=LIST,
            nameOverride=TEXT,
            fullnameOverride=TEXT,
            commonLabels=MARKS,
            commonAnnotations=MARKS,
            extraObjects=OBJECTS,
            replicaCount=COUNT,
            autoscaling=part(
                enabled=BOOL,
                minReplicas={"type": "integer", "minimum": 1},
                maxReplicas={"type": "integer", "minimum": 1},
                targetCPUUtilizationPercentage={"type": "integer", "minimum": 1},
                targetInFlight=COUNT,
                extraMetrics=LIST,
                behavior=MAP,
            ),
            keda=part(
                enabled=BOOL,
                minReplicas=COUNT,
                maxReplicas={"type": "integer", "minimum": 1},
                pollingInterval={"type": "integer", "minimum": 1},
                cooldownPeriod=COUNT,
                annotations=MARKS,
                fallback=MAP,
                triggers=LIST,
            ),
            podDisruptionBudget=part(
                enabled=BOOL,
                maxUnavailable=COUNT_OR_SHARE,
                minAvailable=or_null(COUNT_OR_SHARE),
                unhealthyPodEvictionPolicy=words("", "IfHealthyBudget", "AlwaysAllow"),
            ),
            strategy=part(type=words("RollingUpdate", "Recreate"), rollingUpdate=or_null(MAP)),
            minReadySeconds=COUNT,
            revisionHistoryLimit=COUNT,
            deploymentLabels=MARKS,
            deploymentAnnotations=MARKS,
            resources=MAP,
            startupProbe=PROBE,
            readinessProbe=PROBE,
            livenessProbe=PROBE,
            lifecycle=MAP,
            terminationGracePeriodSeconds=or_null(COUNT),
            podSecurityContext=MAP,
            securityContext=MAP,
            podAnnotations=MARKS,
            podLabels=MARKS,
            **PLACES,
            topologySpreadConstraints=LIST,
            runtimeClassName=TEXT,
            schedulerName=TEXT,
            hostAliases=LIST,
            dnsPolicy=words("", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
            dnsConfig=MAP,
            extraArgs=TEXTS,
            envFrom=LIST,
            initContainers=LIST,
            extraContainers=LIST,
            extraEnv=LIST,
            extraVolumes=LIST,
            extraVolumeMounts=LIST,
            serviceAccount=part(create=BOOL, name=TEXT, annotations=MARKS),
            rbac=part(create=BOOL),
            service=part(
                type=words("ClusterIP", "NodePort", "LoadBalancer"),
                port=PORT,
                nodePort=or_null(PORT),
                annotations=MARKS,
                labels=MARKS,
                clusterIP=TEXT,
                loadBalancerClass=TEXT,
                loadBalancerIP=TEXT,
                loadBalancerSourceRanges=TEXTS,
                externalIPs=TEXTS,
                externalTrafficPolicy=words("", "Cluster", "Local"),
                internalTrafficPolicy=words("", "Cluster", "Local"),
                ipFamilyPolicy=words("", "SingleStack", "PreferDualStack", "RequireDualStack"),
                ipFamilies=TEXTS,
                sessionAffinity=words("", "None", "ClientIP"),
            ),
            ingress=part(
                enabled=BOOL,
                className=TEXT,
                annotations=MARKS,
                labels=MARKS,
                hosts={
                    "type": "array",
                    "minItems": 1,
                    "items": {"anyOf": [TEXT, part(host=TEXT, paths=PATHS)]},
                },
                paths=PATHS,
                tls=LIST,
            ),
            httpRoute=part(
                enabled=BOOL,
                annotations=MARKS,
                labels=MARKS,
                parentRefs=LIST,
                hostnames=TEXTS,
                matches=LIST,
                filters=LIST,
            ),
            picker=part(
                enabled=BOOL,
                tls=BOOL,
                pool=part(
                    create=BOOL,
                    name=TEXT,
                    matchLabels=MARKS,
                    targetPorts={"type": "array", "minItems": 1, "maxItems": 8, "items": PORT},
                    failureMode=words("FailOpen", "FailClose"),
                ),
                route=part(parentRefs=LIST, hostnames=TEXTS),
            ),
            networkPolicy=part(enabled=BOOL, clients=LIST, monitoring=LIST),
            metrics=part(
                serviceMonitor=part(**MONITOR),
                podMonitor=part(**MONITOR),
                prometheusRule=part(
                    enabled=BOOL,
                    namespace=TEXT,
                    labels=MARKS,
                    disabled=TEXTS,
                    runbookUrl={"type": "string", "pattern": "^$|^https?://"},
                    additionalGroups=LIST,
                ),
                dashboards=part(
                    enabled=BOOL, namespace=TEXT, label=TEXT, labelValue=TEXT, annotations=MARKS
                ),
            ),
            demo=part(
                enabled=BOOL,
                replicas={"type": "integer", "minimum": 1},
                preset=TEXT,
                resources=MAP,
                **PLACES,
            ),
        ),
        # What Helm itself adds for a chart that is another's dependency.
        "patternProperties": {"^global$": {"type": "object"}},
    }


def text() -> str:
    """As the file has it."""
    return json.dumps(schema(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text())
