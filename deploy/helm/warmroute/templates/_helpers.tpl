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

{{- define "warmroute.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
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

{{/* The settings as the file has them: config, and what demo and redis add to it. */}}
{{- define "warmroute.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if .Values.demo.enabled }}
{{- if not (or $config.discovery_services $config.discovery_selector) }}
{{- $_ := set $config "discovery" "kubernetes" }}
{{- $_ := set $config "discovery_services" (list (printf "%s-demo" (include "warmroute.fullname" .))) }}
{{- end }}
{{- end }}
{{- if eq ($config.discovery | toString) "kubernetes" }}
{{- if not (or $config.discovery_services $config.discovery_selector) }}
{{- fail "which pods are the replicas? Set config.discovery_services (names of Services) or config.discovery_selector (labels of pods); or demo.enabled for simulated ones" }}
{{- end }}
{{- end }}
{{- if eq .Values.redis.mode "bundled" }}
{{- $_ := set $config "state" (printf "redis://%s-redis:6379" (include "warmroute.fullname" .)) }}
{{- else if eq .Values.redis.mode "external" }}
{{- $_ := set $config "state" (required "redis.mode is external: set redis.url" .Values.redis.url) }}
{{- end }}
{{- toYaml $config }}
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

{{- define "warmroute.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "warmroute.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Whether the API server is asked: RBAC and a token are needed then. */}}
{{- define "warmroute.asksCluster" -}}
{{- if eq (get (include "warmroute.config" . | fromYaml) "discovery" | toString) "kubernetes" }}yes{{ end }}
{{- end }}
