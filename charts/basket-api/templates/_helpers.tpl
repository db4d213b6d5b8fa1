{{/* The chart's name: the label app.kubernetes.io/name. */}}
{{- define "basket-api.name" -}}
{{- .Values.nameOverride | default .Chart.Name -}}
{{- end -}}

{{/* The name of the release's objects. At most 50 characters, so that a suffix still fits into a label. */}}
{{- define "basket-api.fullname" -}}
{{- $name := include "basket-api.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* A version may have build metadata, which a label does not take as it is. */}}
{{- define "basket-api.labelValue" -}}
{{- regexReplaceAll "[^A-Za-z0-9]+$" (. | replace "+" "_" | trunc 63) "" -}}
{{- end -}}

{{- define "basket-api.chart" -}}
{{- include "basket-api.labelValue" (printf "%s-%s" .Chart.Name .Chart.Version) -}}
{{- end -}}

{{- define "basket-api.selectorLabels" -}}
app.kubernetes.io/name: {{ include "basket-api.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "basket-api.labels" -}}
{{ include "basket-api.selectorLabels" . }}
app.kubernetes.io/version: {{ include "basket-api.labelValue" .Chart.AppVersion | quote }}
app.kubernetes.io/component: api
app.kubernetes.io/part-of: outbox
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "basket-api.chart" . }}
{{- end -}}

{{- define "basket-api.serviceAccountName" -}}
{{- with .Values.serviceAccount -}}
{{- if .create -}}
{{- .name | default (include "basket-api.fullname" $) -}}
{{- else -}}
{{- required "serviceAccount.create is false and serviceAccount.name is not set: name the account of the pods" .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An image: (list root "image"), with the name of the value. A repository that names its registry keeps it. */}}
{{- define "basket-api.image" -}}
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
