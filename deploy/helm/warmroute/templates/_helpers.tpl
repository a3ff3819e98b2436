{{- define "warmroute.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "warmroute.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "warmroute.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "warmroute.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "warmroute.selector" -}}
app.kubernetes.io/name: {{ include "warmroute.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of an object: (list ROOT MAP...). The release's own win over the maps, those over commonLabels. */}}
{{- define "warmroute.labels" -}}
{{- $root := first . }}
{{- $labels := dict }}
{{- range prepend (rest .) $root.Values.commonLabels }}
{{- $labels = mergeOverwrite $labels (deepCopy (. | default dict)) }}
{{- end }}
{{- $labels = omit $labels "app.kubernetes.io/component" }}
{{- $labels = mergeOverwrite $labels (include "warmroute.selector" $root | fromYaml) }}
{{- $_ := set $labels "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version) }}
{{- $_ := set $labels "app.kubernetes.io/version" $root.Chart.AppVersion }}
{{- $_ := set $labels "app.kubernetes.io/managed-by" $root.Release.Service }}
{{- toYaml $labels }}
{{- end }}

{{/* Annotations of an object: (list ROOT MAP...), over commonAnnotations. Nothing where there are none. */}}
{{- define "warmroute.annotations" -}}
{{- $annotations := dict }}
{{- range prepend (rest .) (first .).Values.commonAnnotations }}
{{- $annotations = mergeOverwrite $annotations (deepCopy (. | default dict)) }}
{{- end }}
{{- with $annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end }}

{{- define "warmroute.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "warmroute.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "warmroute.image" -}}
{{- $image := .Values.image }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}{{ end }}
{{- end }}

{{/* The InferencePool that the picker picks from. */}}
{{- define "warmroute.pool" -}}
{{- if and (not .Values.picker.pool.create) (not .Values.picker.pool.name) }}
{{- fail "picker.pool.create is false: set picker.pool.name to the InferencePool's name" }}
{{- end }}
{{- default (include "warmroute.fullname" .) .Values.picker.pool.name }}
{{- end }}

{{/* Whether the picker serves with the chart's own certificate. */}}
{{- define "warmroute.pickerTls" -}}
{{- if and .Values.picker.enabled .Values.picker.tls (not .Values.config.tls_cert) }}yes{{ end }}
{{- end }}

{{/* Whether the chart makes the Services of pods that prefill and of pods that decode. */}}
{{- define "warmroute.disaggregation" -}}
{{- $decode := .Values.disaggregation.decode.matchLabels }}
{{- $prefill := .Values.disaggregation.prefill.matchLabels }}
{{- if or $decode $prefill }}
{{- if not (and $decode $prefill) }}
{{- fail "disaggregation: set both decode.matchLabels and prefill.matchLabels" }}
{{- end }}
{{- if or .Values.config.discovery_services .Values.config.discovery_selector .Values.config.discovery_pool .Values.config.replicas }}
{{- fail "disaggregation finds the replicas itself: leave out config.discovery_services, config.discovery_selector, config.discovery_pool and config.replicas, or label the pods with warmroute/role and leave out disaggregation" }}
{{- end }}yes{{ end }}
{{- end }}

{{/* The settings as the file has them: config, and what demo and redis add to it. */}}
{{- define "warmroute.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if include "warmroute.disaggregation" . }}
{{- $_ := set $config "discovery" "kubernetes" }}
{{- $_ := set $config "discovery_services" (list (printf "%s-decode" (include "warmroute.fullname" .)) (printf "%s-prefill" (include "warmroute.fullname" .))) }}
{{- else if .Values.picker.enabled }}
{{- if not (or $config.discovery_services $config.discovery_selector $config.discovery_pool) }}
{{- $_ := set $config "discovery" "kubernetes" }}
{{- $_ := set $config "discovery_pool" (include "warmroute.pool" .) }}
{{- end }}
{{- else if .Values.demo.enabled }}
{{- if not (or $config.discovery_services $config.discovery_selector) }}
{{- $_ := set $config "discovery" "kubernetes" }}
{{- $_ := set $config "discovery_services" (list (printf "%s-demo" (include "warmroute.fullname" .))) }}
{{- end }}
{{- end }}
{{- if and (eq ($config.discovery | toString) "kubernetes") (not .Values.existingConfigMap) }}
{{- if not (or $config.discovery_services $config.discovery_selector $config.discovery_pool) }}
{{- fail "which pods are the replicas? Set config.discovery_services (names of Services) or config.discovery_selector (labels of pods); disaggregation, with pods that prefill; or demo.enabled for simulated ones" }}
{{- end }}
{{- end }}
{{- with include "warmroute.state" . }}
{{- $_ := set $config "state" . }}
{{- end }}
{{- if and .Values.tenants (not $config.tenants) }}
{{- $_ := set $config "tenants" "/etc/warmroute/tenants.yaml" }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* Whether the chart brings its Redis: not where config.state names another. */}}
{{- define "warmroute.bundledRedis" -}}
{{- if and (eq .Values.redis.mode "bundled") (not .Values.config.state) }}
{{- if .Values.redis.url }}
{{- fail "redis.url is that of your own Redis: set redis.mode to external, or leave redis.url out" }}
{{- end }}yes{{ end }}
{{- end }}

{{/* The URL of the Redis that routers share their state through; empty: config.state, or none. */}}
{{- define "warmroute.state" -}}
{{- if include "warmroute.bundledRedis" . }}redis://{{ include "warmroute.fullname" . }}-redis:6379
{{- else if eq .Values.redis.mode "external" }}{{ required "redis.mode is external: set redis.url" .Values.redis.url }}
{{- end }}
{{- end }}

{{- define "warmroute.configMap" -}}
{{- default (include "warmroute.fullname" .) .Values.existingConfigMap }}
{{- end }}

{{/* Something else than the chart's replicaCount says how many routers there are. */}}
{{- define "warmroute.scaled" -}}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling.enabled and keda.enabled: KEDA makes an autoscaler of its own, so choose one" }}
{{- end }}
{{- if or .Values.autoscaling.enabled .Values.keda.enabled }}yes{{ end }}
{{- end }}

{{/* Seconds of a duration such as 500ms, 2s, 1m30s or 90, rounded up. */}}
{{- define "warmroute.seconds" -}}
{{- $text := toString . }}
{{- $total := 0.0 }}
{{- if regexMatch "^[0-9.]+$" $text }}
{{- $total = float64 $text }}
{{- else }}
{{- $units := dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0 }}
{{- range regexFindAll "[0-9.]+ *(ms|s|m|h|d)" $text -1 }}
{{- $unit := regexFind "(ms|s|m|h|d)$" . }}
{{- $number := trimSuffix $unit . | trim }}
{{- $total = addf $total (mulf (float64 $number) (get $units $unit)) }}
{{- end }}
{{- end }}
{{- ceil $total | int }}
{{- end }}

{{/* A pod's securityContext: (list ROOT MAP). OpenShift gives each namespace its own users and
refuses others. */}}
{{- define "warmroute.podSecurity" -}}
{{- $security := last . }}
{{- if (first .).Capabilities.APIVersions.Has "security.openshift.io/v1" }}
{{- $security = omit $security "runAsUser" "runAsGroup" "fsGroup" }}
{{- end }}
{{- toYaml $security }}
{{- end }}

{{/* The same for a container. */}}
{{- define "warmroute.containerSecurity" -}}
{{- include "warmroute.podSecurity" (list . .Values.securityContext) }}
{{- end }}

{{/* The entries of a mapping that say something, as YAML: nothing where none does. */}}
{{- define "warmroute.filled" -}}
{{- $filled := dict }}
{{- range $name, $value := . }}
{{- if $value }}
{{- $_ := set $filled $name $value }}
{{- end }}
{{- end }}
{{- with $filled }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* Where pods run, from the values of the workload. */}}
{{- define "warmroute.scheduling" -}}
{{- include "warmroute.filled" (pick . "nodeSelector" "tolerations" "affinity" "priorityClassName") }}
{{- end }}

{{/* A probe of the router: (list PROBE PATH). It asks the admin port, unless the probe says what
else to do. */}}
{{- define "warmroute.probe" -}}
{{- $probe := deepCopy (first .) }}
{{- if not (or $probe.exec $probe.httpGet $probe.tcpSocket $probe.grpc) }}
{{- $_ := set $probe "httpGet" (dict "path" (last .) "port" "admin") }}
{{- end }}
{{- toYaml $probe }}
{{- end }}

{{/* Whether the API server is asked: RBAC and a token are needed then. */}}
{{- define "warmroute.asksCluster" -}}
{{- if eq (get (include "warmroute.config" . | fromYaml) "discovery" | toString) "kubernetes" }}yes{{ end }}
{{- end }}

{{/* The rules without the alerts that are disabled, and with the pages' address before their paths. */}}
{{- define "warmroute.ruleGroups" -}}
{{- $values := .Values.metrics.prometheusRule }}
{{- $unknown := $values.disabled }}
{{- $groups := list }}
{{- range $group := (.Files.Get "dashboards/rules.yaml" | fromYaml).groups }}
{{- $rules := list }}
{{- range $rule := $group.rules }}
{{- $name := $rule.alert | default $rule.record }}
{{- if has $name $values.disabled }}
{{- $unknown = without $unknown $name }}
{{- else }}
{{- if and $rule.alert $values.runbookUrl }}
{{- $page := base $rule.annotations.runbook_url }}
{{- $_ := set $rule.annotations "runbook_url" (printf "%s/%s" (trimSuffix "/" $values.runbookUrl) $page) }}
{{- end }}
{{- $rules = append $rules $rule }}
{{- end }}
{{- end }}
{{- if $rules }}
{{- $groups = append $groups (set $group "rules" $rules) }}
{{- end }}
{{- end }}
{{- with $unknown }}
{{- fail (printf "metrics.prometheusRule.disabled: no such rule: %s" (join ", " .)) }}
{{- end }}
{{- toYaml (concat $groups $values.additionalGroups) }}
{{- end }}
