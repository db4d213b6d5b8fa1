{{/*
What the pods of the Deployment, of a Job and of helm test have in common. Each takes (dict "root" $ "own" … "suffix" …): `own` are the values
of the Job or test, which come before those of the Deployment, and `suffix` tells its pods from the Deployment's.
*/}}

{{/* Labels of pods. Without those of the selector a Deployment would find other pods than its own, or none. */}}
{{- define "outbox-operator.podLabels" -}}
{{- $labels := include "outbox-operator.labels" .root | fromYaml -}}
{{- if .suffix -}}
{{- $_ := set $labels "app.kubernetes.io/name" (printf "%s-%s" (include "outbox-operator.name" .root) .suffix) -}}
{{- end -}}
{{- $selector := include "outbox-operator.selectorLabels" .root | fromYaml -}}
{{- range $given := list .root.Values.podLabels (.own).podLabels -}}
{{- range $key, $text := $given -}}
{{- if hasKey $selector $key -}}
{{- fail (printf "podLabels sets %s, by which the Deployment finds its pods: use nameOverride, or another label" $key) -}}
{{- end -}}
{{- $_ := set $labels $key $text -}}
{{- end -}}
{{- end -}}
{{- toYaml $labels -}}
{{- end -}}

{{/* Annotations of pods; empty where there are none. */}}
{{- define "outbox-operator.podAnnotations" -}}
{{- $annotations := dict -}}
{{- range $given := list .root.Values.podAnnotations (.own).podAnnotations -}}
{{- range $key, $text := $given -}}
{{- $_ := set $annotations $key $text -}}
{{- end -}}
{{- end -}}
{{- if $annotations -}}
{{- toYaml $annotations -}}
{{- end -}}
{{- end -}}

{{/* Who pods run as, what pulls their images, and where they run. Empty where nothing is given. */}}
{{- define "outbox-operator.podSpec" -}}
{{- $values := .root.Values -}}
{{- $spec := dict -}}
{{- with $values.podSecurityContext -}}
{{- $_ := set $spec "securityContext" . -}}
{{- end -}}
{{- $secrets := list -}}
{{- range concat (($values.global).imagePullSecrets | default list) ($values.imagePullSecrets | default list) -}}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- with uniq $secrets -}}
{{- $_ := set $spec "imagePullSecrets" . -}}
{{- end -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" -}}
{{- with get ($.own | default dict) $key | default (get $values $key) -}}
{{- $_ := set $spec $key . -}}
{{- end -}}
{{- end -}}
{{- with $values.priorityClassName -}}
{{- $_ := set $spec "priorityClassName" . -}}
{{- end -}}
{{- if $spec -}}
{{- toYaml $spec -}}
{{- end -}}
{{- end -}}

{{/* Replicas prefer different nodes where no affinity is given. */}}
{{- define "outbox-operator.defaultAffinity" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels: {{- include "outbox-operator.selectorLabels" . | nindent 10 }}
{{- end -}}
