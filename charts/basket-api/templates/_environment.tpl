{{/* A variable from a Secret: (list name secret key). */}}
{{- define "basket-api.fromSecret" -}}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      name: {{ index . 1 }}
      key: {{ index . 2 }}
{{- end -}}

{{- define "basket-api.database" -}}
{{- with .Values.database -}}
{{ include "basket-api.fromSecret" (list "BASKET_DATABASE_URL" (required "database.secret is not set: the Secret with the address of the database" .secret) .key) }}
{{- end -}}
{{- end -}}

{{/* The settings of the service. A combination that cannot work fails here, with the name of the value. */}}
{{- define "basket-api.environment" -}}
{{ include "basket-api.database" . }}
- name: BASKET_LISTEN
  value: "[::]:8080"
- name: BASKET_ADMIN_LISTEN
  value: "[::]:9080"
- name: RUST_LOG
  value: {{ .Values.log.level | quote }}
- name: BASKET_LOG_FORMAT
  value: {{ .Values.log.format }}
- name: BASKET_AUTH
  value: {{ .Values.auth.mode }}
{{- with .Values.auth }}
{{- if eq .mode "jwt" }}
- name: BASKET_JWT_ISSUER
  value: {{ required "auth.jwt.issuer is not set, and auth.mode is jwt" .jwt.issuer | quote }}
- name: BASKET_JWT_AUDIENCE
  value: {{ required "auth.jwt.audience is not set, and auth.mode is jwt" .jwt.audience | quote }}
- name: BASKET_JWT_AUDIENCE_CLAIM
  value: {{ .jwt.audienceClaim | quote }}
- name: BASKET_JWT_SUBJECT_CLAIM
  value: {{ .jwt.subjectClaim | quote }}
- name: BASKET_JWT_ROLES_CLAIM
  value: {{ .jwt.rolesClaim | quote }}
- name: BASKET_JWT_AUDITOR_ROLE
  value: {{ .jwt.auditorRole | quote }}
- name: BASKET_JWT_REQUIRE_AT_JWT
  value: {{ .jwt.requireAtJwt | quote }}
- name: BASKET_JWT_LEEWAY
  value: {{ .jwt.leeway | quote }}
- name: BASKET_JWKS_URL
  value: {{ required "auth.jwt.jwksUrl is not set, and auth.mode is jwt" .jwt.jwksUrl | quote }}
{{- if .jwt.caSecret }}
- name: BASKET_JWKS_CA_FILE
  value: /etc/basket-api/jwks-ca/ca.crt
{{- end }}
{{- else if eq .mode "static-token" }}
{{ include "basket-api.fromSecret" (list "BASKET_STATIC_TOKEN" (required "auth.staticToken.secret is not set, and auth.mode is static-token" .staticToken.secret) .staticToken.key) }}
{{- end }}
- name: BASKET_REQUIRE_IF_MATCH
  value: {{ .requireIfMatch | quote }}
{{- end }}
{{- with .Values.limits }}
- name: BASKET_DATABASE_CONNECTIONS
  value: {{ .databaseConnections | quote }}
- name: BASKET_MAX_CONNECTIONS
  value: {{ .connections | quote }}
- name: BASKET_MAX_REQUESTS
  value: {{ .requests | quote }}
- name: BASKET_MAX_REQUESTS_PER_PRINCIPAL
  value: {{ .requestsPerPrincipal | quote }}
- name: BASKET_RATE_LIMIT
  value: {{ .rate | quote }}
- name: BASKET_REQUEST_TIMEOUT
  value: {{ .requestTimeout | quote }}
- name: BASKET_HEADER_TIMEOUT
  value: {{ .headerTimeout | quote }}
- name: BASKET_IDLE_TIMEOUT
  value: {{ .idleTimeout | quote }}
- name: BASKET_SEND_TIMEOUT
  value: {{ .sendTimeout | quote }}
- name: BASKET_STOP_DELAY
  value: {{ printf "%vs" .stopDelaySeconds | quote }}
- name: BASKET_DRAIN_TIMEOUT
  value: {{ printf "%vs" .drainTimeoutSeconds | quote }}
{{- end }}
{{- with .Values.retention }}
- name: BASKET_ABANDON_AFTER
  value: {{ .abandonAfter | quote }}
- name: BASKET_KEEP_KEYS
  value: {{ .keepKeys | quote }}
{{- if .keepCommands }}
- name: BASKET_KEEP_COMMANDS
  value: {{ .keepCommands | quote }}
{{- end }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
