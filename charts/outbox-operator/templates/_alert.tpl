{{/*
One rule of a PrometheusRule, where its switch is on: (dict "root" $ "name" … "severity" … "expr" … "summary" … "description" …). How long the
expression has to hold is the value `for` of the alert, or of its severity (`criticalFor`).
*/}}
{{- define "outbox-operator.alert" -}}
{{- $values := index .root.Values.alerts.rules .name -}}
{{- if $values.enabled }}
- alert: {{ .name }}
  expr: {{ .expr | quote }}
  for: {{ .for | default $values.for }}
  labels:
    severity: {{ .severity }}
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
