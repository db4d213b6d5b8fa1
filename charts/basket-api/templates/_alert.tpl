{{/*
One rule of a PrometheusRule, where its switch is on: (dict "root" $ "name" … "severity" … "expr" … "summary" … "description" …). How long the
expression has to hold is the value `for` of the alert.
*/}}
{{- define "basket-api.alert" -}}
{{- $values := index .root.Values.alerts.rules .name -}}
{{- if $values.enabled }}
- alert: {{ .name }}
  expr: {{ .expr | quote }}
  for: {{ $values.for }}
  labels:
    severity: {{ .severity }}
    namespace: {{ .root.Release.Namespace }}
    release: {{ .root.Release.Name }}
    {{- with .root.Values.alerts.additionalRuleLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    summary: {{ .summary | quote }}
    description: {{ .description | quote }}
    {{- with .root.Values.alerts.runbookUrl }}
    runbook_url: {{ printf "%s/%s.md" (trimSuffix "/" .) $.name | quote }}
    {{- end }}
{{- end }}
{{- end -}}
