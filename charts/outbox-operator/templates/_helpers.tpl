{{- define "outbox-operator.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "outbox-operator.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "outbox-operator.labels" -}}
{{ include "outbox-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: outbox
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "outbox-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "outbox-operator.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Given (list root image). */}}
{{- define "outbox-operator.image" -}}
{{- $root := index . 0 -}}
{{- with index . 1 -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $root.Chart.AppVersion }}{{ end }}
{{- end -}}
{{- end -}}

{{- define "outbox-operator.environment" -}}
- {name: OUTBOX_OPERATOR_RELAY_IMAGE, value: {{ include "outbox-operator.image" (list . .Values.relayImage) | quote }}}
- {name: OUTBOX_OPERATOR_LEASE_NAMESPACE, value: {{ .Release.Namespace | quote }}}
{{- with .Values.watchNamespaces }}
- {name: OUTBOX_OPERATOR_NAMESPACE, value: {{ join "," . | quote }}}
{{- end }}
- {name: OUTBOX_OPERATOR_LISTEN, value: "[::]:9101"}
- {name: OUTBOX_OPERATOR_LOG_FORMAT, value: {{ .Values.log.format | quote }}}
- {name: RUST_LOG, value: {{ printf "%s,librdkafka=off,rdkafka=off" .Values.log.level | quote }}}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "outbox-operator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "outbox-operator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}
