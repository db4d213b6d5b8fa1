{{/* The chart's name: the label app.kubernetes.io/name. */}}
{{- define "outbox-operator.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/* The name of the release's objects. At most 50 characters, so that a suffix still fits into a label. */}}
{{- define "outbox-operator.fullname" -}}
{{- $name := include "outbox-operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* A version may have build metadata, which a label does not take as it is. */}}
{{- define "outbox-operator.labelValue" -}}
{{- regexReplaceAll "[^A-Za-z0-9]+$" (. | replace "+" "_" | trunc 63) "" -}}
{{- end -}}

{{- define "outbox-operator.chart" -}}
{{- include "outbox-operator.labelValue" (printf "%s-%s" .Chart.Name .Chart.Version) -}}
{{- end -}}

{{- define "outbox-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "outbox-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "outbox-operator.labels" -}}
{{ include "outbox-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ include "outbox-operator.labelValue" .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: outbox
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "outbox-operator.chart" . }}
{{- end -}}

{{- define "outbox-operator.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{- if .create -}}
{{- .name | default (include "outbox-operator.fullname" $) -}}
{{- else -}}
{{- required "serviceAccount.create is false and serviceAccount.name is not set: name the account that gets the operator's rights. With the account default every pod of the namespace would have them" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An image: (list root "image"), with the name of the value. A repository that names its registry keeps it. */}}
{{- define "outbox-operator.image" -}}
{{- $root := index . 0 -}}
{{- $value := index . 1 -}}
{{- $image := get $root.Values $value -}}
{{- $repository := $image.repository -}}
{{- $first := first (splitList "/" $repository) -}}
{{- $isNamed := and (contains "/" $repository) (or (contains "." $first) (contains ":" $first) (eq $first "localhost")) -}}
{{- $registry := ($root.Values.global).imageRegistry | default $image.registry -}}
{{- if and $registry (not $isNamed) -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" $registry) $repository -}}
{{- end -}}
{{- if not (contains "/" $repository) -}}
{{- fail (printf "%s.repository is %s, without a registry: this project publishes no images. Build and push yours, and set %s.repository=registry.example/%s (or %s.registry, or global.imageRegistry)" $value $repository $value $repository $value) -}}
{{- end -}}
{{- $repository -}}
{{- if $image.digest -}}
@{{ $image.digest }}
{{- else -}}
:{{ $image.tag | default (replace "+" "_" $root.Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{- define "outbox-operator.environment" -}}
- name: OUTBOX_OPERATOR_RELAY_IMAGE
  value: {{ include "outbox-operator.image" (list . "relayImage") | quote }}
{{- with .Values.relayPodTemplate }}
- name: OUTBOX_OPERATOR_RELAY_POD_TEMPLATE
  value: {{ toJson . | quote }}
{{- end }}
- name: OUTBOX_OPERATOR_LEASE_NAMESPACE
  value: {{ .Release.Namespace | quote }}
- name: OUTBOX_OPERATOR_LEASE_NAME
  value: {{ include "outbox-operator.fullname" . | quote }}
{{- with .Values.watchNamespaces }}
- name: OUTBOX_OPERATOR_NAMESPACE
  value: {{ join "," . | quote }}
{{- end }}
- name: OUTBOX_OPERATOR_LISTEN
  value: "[::]:9101"
- name: OUTBOX_OPERATOR_LOG_FORMAT
  value: {{ .Values.log.format | quote }}
- name: RUST_LOG
  value: {{ printf "%s,librdkafka=off,rdkafka=off" .Values.log.level | quote }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
